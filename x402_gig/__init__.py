"""Sell gigs over x402."""
