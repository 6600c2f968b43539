"""Runs on several devices and processes: launch, synchronisation, stop requests, sharding."""
