"""Models over HTTP: requests in, batches to the model, responses back (extra `serve`)."""
