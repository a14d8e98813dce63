"""Bytes and arrays that outlive a process: keys, durable vectors, atomic publishing. No ML, no gpumatch imports."""
