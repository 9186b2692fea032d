-- A socket is a user's now, unless the user's tokens were revoked after this one was issued, or the user has as many
-- connections as allowed (0: any number). Only those of live instances count, and a connection counts once however many
-- namespaces it is in.
-- ARGV: instance, connection, user, socket id, record, connections at most, when the token was issued (ms), lease in ms,
-- 1 if the record is kept else 0.
-- Returns 'entered', 'revoked' or 'full'.
local instance, connection, user, connections_max = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[6])
local revoked_ms = redis.call('GET', REVOKED .. user)
if revoked_ms and tonumber(revoked_ms) >= tonumber(ARGV[7]) then
  return 'revoked'
end
if connections_max > 0 then
  local seen, count = {[connection] = true}, 0
  for _, value in ipairs(redis.call('HVALS', USER .. user)) do
    local owner, other = parts(value)
    if not seen[other] and (owner == instance or is_live(owner)) then
      seen[other] = true
      count = count + 1
    end
  end
  if count >= connections_max then
    return 'full'
  end
end
if ARGV[9] == '1' then
  hold_lease(instance, tonumber(ARGV[8]))
  put(instance, connection, user, ARGV[4], ARGV[5], false, true)
end
return 'entered'
