"""The words: ids, records, errors and ports. No I/O and no asyncio here, so that every room may know it."""
