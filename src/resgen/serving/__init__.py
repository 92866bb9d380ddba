"""Models over HTTP: requests in, batches to the model, answers back to whoever asked (extra `serve`)."""
