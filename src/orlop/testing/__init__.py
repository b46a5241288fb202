"""What helps to test orlop and programs that use it; imported by nothing in orlop itself."""
