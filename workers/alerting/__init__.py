"""Alerts: rules by setting about components and metrics, which fire once, and are told as resolved once."""
