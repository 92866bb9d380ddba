"""Networks that predict masked codes."""
