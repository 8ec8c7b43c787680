"""Documents to packed batches, in one global order that resumes to the token."""
