"""Subscriptions: being told of events, each seq once and in order, over any number of disconnections and trims."""
