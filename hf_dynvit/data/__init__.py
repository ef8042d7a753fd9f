"""Labelled images: read, checked, split and made into pixels."""
