"""How layers become a root file system: chains, activations and the drivers that mount them."""
