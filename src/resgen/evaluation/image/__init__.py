"""What is measured of pictures."""
