"""What the tests share: disks, registries, layers, images, and the oracle.  Nothing here uses orlop."""
