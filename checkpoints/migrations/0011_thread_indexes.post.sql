-- LangGraph's saver makes an index on the thread of each of its tables, whose primary keys begin with the thread. Every
-- row that is written keeps them up, and no query needs them.

drop index checkpoints_thread_id_idx;
drop index checkpoint_blobs_thread_id_idx;
drop index checkpoint_writes_thread_id_idx;
