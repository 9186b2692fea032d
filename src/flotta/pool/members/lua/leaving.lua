-- A worker drains: it gets no slots any more, and nobody rings it for tasks. It keeps its lease until `left`.
-- ARGV: worker.  Returns 1, or 0 if its lease has ended.
local worker = ARGV[1]
if not is_live(worker) then
  return 0
end
redis.call('HDEL', P .. 'idle', worker)
if redis.call('SADD', P .. 'leaving', worker) == 1 then
  members_changed()
end
return 1
