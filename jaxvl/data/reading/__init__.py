"""Who reads the records of batches: threads of this process, or processes that share memory with
it."""
