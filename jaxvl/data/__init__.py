"""Bytes become records, records become batches on the mesh."""
