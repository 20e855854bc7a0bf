-- name: flush
-- Write the rows of many runs, each only while its lease has the epoch they were written under, or none of them and say
-- who is in the way.
select refused, lacking, committed_at
  from flush_v2(
        %(flushes)s, %(waits)s, %(skips)s, %(runs)s, %(epochs)s, %(of_tenants)s, %(blob_slot)s, %(blob_thread)s,
        %(blob_namespace)s, %(blob_channel)s, %(blob_version)s, %(blob_type)s, %(blob_blob)s, %(put_slot)s,
        %(put_thread)s, %(put_namespace)s, %(put_id)s, %(put_parent)s, %(put_checkpoint)s, %(put_metadata)s,
        %(add_slot)s, %(add_thread)s, %(add_namespace)s, %(add_checkpoint)s, %(add_task)s, %(add_idx)s, %(add_path)s,
        %(add_channel)s, %(add_type)s, %(add_blob)s, %(over_slot)s, %(over_thread)s, %(over_namespace)s,
        %(over_checkpoint)s, %(over_task)s, %(over_idx)s, %(over_path)s, %(over_channel)s, %(over_type)s,
        %(over_blob)s, %(event_slot)s, %(event_attempt)s, %(event_kind)s, %(event_node)s, %(event_task)s,
        %(event_call)s, %(event_trace)s, %(event_span)s, %(event_payload)s, %(event_question)s, %(question_slot)s,
        %(question_doc)s, %(open_slot)s, %(open_call)s, %(open_thread)s, %(open_key)s, %(open_namespace)s,
        %(open_task)s, %(open_node)s, %(open_checkpoint)s, %(open_kind)s, %(open_name)s, %(open_occurrence)s,
        %(open_fork)s, %(open_agent)s, %(open_digest)s, %(open_request)s, %(open_effect)s, %(open_idempotent)s,
        %(open_budgets)s, %(open_reserved)s, %(open_model)s, %(open_prompt)s, %(open_policy)s, %(open_timeout)s,
        %(close_slot)s, %(close_call)s, %(close_thread)s, %(close_budgets)s, %(close_status)s, %(close_used)s,
        %(close_response)s, %(close_error_type)s, %(close_error_message)s, %(close_error_facts)s, %(close_latency)s,
        %(moved_budget)s, %(moved_tenant)s, %(moved_opens)s, %(moved_unpriced)s, %(moved_asked)s, %(moved_held)s,
        %(moved_spent)s)
