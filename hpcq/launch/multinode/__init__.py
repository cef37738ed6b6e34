"""Processes of a unit that spans several nodes: rendezvous, coordinator, followers, the channel between them."""
