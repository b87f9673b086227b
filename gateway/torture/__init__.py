"""Kills a broker again and again and counts what it had acknowledged and then did not have."""
