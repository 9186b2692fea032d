-- Tokens of a user that were issued up to a moment are worth nothing any more; what was revoked stays revoked.
-- ARGV: user, that moment (ms), how long it is remembered in ms. Everybody is told.
local key, at_ms, keep_ms = REVOKED .. ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
at_ms = math.max(at_ms, tonumber(redis.call('GET', key) or 0))
keep_ms = math.max(keep_ms, redis.call('PTTL', key))
redis.call('SET', key, string.format('%.0f', at_ms), 'PX', string.format('%.0f', keep_ms))
redis.call('PUBLISH', P .. 'control', cmsgpack.pack({ARGV[1], at_ms, keep_ms}))
return 1
