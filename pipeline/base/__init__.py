"""What every stage uses. It knows nothing of images, and imports no torch.

::

    errors.py            the error tree: exit code and way out of every failure
    config.py            Config (pydantic), YAML, overrides; all errors at once, with the nearest key
    digests.py           sha256, canonical JSON, fingerprints, differing fields
    seeds.py             seeds derived from labels, numpy generators
    units.py             bytes, seconds, counts: parse and format
    world.py             World (the only reader of RANK), Collective, SingleProcess, run_on_all, run_on_first
    progress.py          Progress protocol, Silent
    store/               Store: a folder or a bucket, by URI
    lease.py             Lease, numbered attempts (fencing), expiry, renewal, takeover
    process_identity.py  ProcessIdentity: host, boot, pid namespace, pid, start time; is it gone; kill it
    retry.py             RetryPolicy, backoff, read with retry, BestEffortWriter
    journal.py           append-only JSON lines in numbered parts
    atomic_output.py     local files and folders that appear complete or not at all
    disk_table.py        DiskTable, DiskTableWriter, ExternalSorter, read_parquet: rows larger than memory
    child_process.py     ChildProcess: exec, framed messages, inherited memory, stall detection, end with parent
    shared_memory.py     SharedMemory, StatusPage, StallDetector, HeartbeatThread of a child
    cluster_head.py      is the head of the Ray cluster reachable
    failpoints.py        points at which a test may kill the process
"""
