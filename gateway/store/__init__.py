"""What survives: one SQLite file, one thread that writes it, and answers that wait for its commits.

How a part of the gateway uses it:

- Its tables come with a step of their own at the end of `schema.STEPS`; a step that was released never changes.
- It writes through `Writer.put(work, then)`, on the event loop and without waiting. `work(db)` runs on the writer's
  thread, inside the next transaction and after every work put before it; `then(result)` runs on the loop after the
  commit that holds it, in the same order. Work must be repeatable: a transaction that failed is run again, whole.
- For one row per message, it collects rows in a list of its own and puts one work per group that writes them with one
  statement (`statements.insert_rows`): each statement that the thread executes must win the interpreter from the loop.
- Reading works the same way: a work that returns rows sees everything put before it. Rows are read in pages.
- `put` returns a ticket; everything put so far is on disk when `Writer.committed` has reached it. `Writer.weigh` tells
  of bytes that wait, `Writer.trouble` says why nothing is committed now, or is None: then accept no more.
"""
