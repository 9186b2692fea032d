-- A notification for a job, in order behind the others of its owner. A parked job keeps up to NOTES_MAX beside its
-- record.
-- KEYS[1] meta   ARGV: key, payload, entries allowed in an inbox, NOTES_MAX
-- Returns {'O'} | {'N'} not there, or stopping | {'F', waiting, limit} full.
-- Again: it is delivered twice.   Calls: 3 (HMGET, XLEN, XADD).
local key, payload = ARGV[1], ARGV[2]
local v = redis.call('HMGET', JOB .. key, 's', 'o')
if not v[1] or v[1] == 'x' then
  return {'N'}
end
local owner, limit, waiting = v[2], tonumber(ARGV[3]), 0
if owner ~= '' then
  waiting = redis.call('XLEN', INBOX .. owner)
end
if waiting == 0 then  -- perhaps there is no inbox
  if owner ~= '' and ring(owner, 't', 'note', 'k', key, 'p', payload) then
    return {'O'}
  end
  waiting, limit = redis.call('LLEN', NOTES .. key), tonumber(ARGV[4])
end
if waiting >= limit then
  return {'F', waiting, limit}
end
pass_note(key, owner, payload)
return {'O'}
