"""Reports and approvals become Releases: what is live, who may change it, and how a change reaches its callers."""
