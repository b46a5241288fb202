"""Looking into images, layers and prepared roots without mounting them."""
