"""Generated: see orlop.proto."""
