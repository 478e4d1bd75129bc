"""The ledger: Calls and Outcomes as frames in append-only segments, read back as joined records and totals.

Owns the segment format, the journal that writes it, the reader that folds it and the queries above it.
It does not encrypt (adapters/files.py does) and keeps no control log (adapters/sqlite.py does).

    from drivetrain.ledger.journal import FrameJournal
        FrameJournal(data_folder, *, segment_bytes_max, writer=None, loop=None, now_ns=time.time_ns)
            .append(record, then=None, *, sync=False)  .failed  .flush()  .close()
    from drivetrain.adapters.files import FileVault
        FileVault(keys_folder, *, payload_days, now_ns=time.time_ns)
            .seal(subject, call_id, kind, payload)  .open(call_id, kind, sealed)  .forget(subject)  .expire(now_ns)
        kinds are `request` and `answers`
    from drivetrain.ledger.reader import LedgerReader
        LedgerReader(data_folder)
            .calls(since_ns=, until_ns=)  .call(call_id)  .poll()  .problems
    from drivetrain.ledger.queries import LedgerQueries
        LedgerQueries(data_folder)
            .cost(by, since_ns=, until_ns=, where=)  .outcomes(metric, by, ...)
    from drivetrain.adapters.sqlite import SqliteControlLog
        SqliteControlLog(path, keys_folder, *, now_ns=time.time_ns)
            .append(kind=, actor=, subject=, body=)  .records(after_seq=0)  .verify()
"""
