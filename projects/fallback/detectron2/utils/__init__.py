"""Logging, communication, events, files and drawing."""
