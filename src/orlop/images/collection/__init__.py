"""What is kept and what goes: collection, policies, pins, and deleting behind the call."""
