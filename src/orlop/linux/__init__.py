"""The kernel's own interfaces: the only room with ctypes and ioctl.

One small function per system call; every failure is an `OSError` with the kernel's errno, or one of
`orlop.errors` where the kernel said more.
"""
