-- A worker drains: it gets no slots any more. It keeps its lease until `left`.
-- ARGV: worker.  Returns 1, or 0 if its lease has ended.
local worker = ARGV[1]
if not is_live(worker) then
  return 0
end
if redis.call('SADD', P .. 'leaving', worker) == 1 then
  members_changed()
end
return 1
