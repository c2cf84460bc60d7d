"""Who reads the records of batches: threads, or processes that share memory."""
