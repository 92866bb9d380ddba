"""Images: where they come from, one at a time, all at once, and sheets of them."""
