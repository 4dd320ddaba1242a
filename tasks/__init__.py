"""The worker side of chroma-sync: stores, chunks, the ledger and the broker."""
