"""What lies on disk: records, ledger, manifest, resume, parts and status; never torch. Imports images and config."""
