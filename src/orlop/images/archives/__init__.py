"""Images on their way from files and to them."""
