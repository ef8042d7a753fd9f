"""Patch agents: what a training forward runs on."""
