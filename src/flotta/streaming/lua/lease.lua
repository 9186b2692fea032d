-- Takes the lease under which one consumer of a sink looks for events to take over.
-- KEYS[1] lease   ARGV[1] how long it lasts, in ms
-- Returns {1 if taken else 0, the server's time in ms}. The value is the time at which it ends, as Pulse writes it; the
-- expiry of the key decides, so that no consumer's clock matters.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local taken = redis.call('SET', KEYS[1], string.format('%.0f', now_ms + ARGV[1]), 'NX', 'PX', ARGV[1])
return {taken and 1 or 0, now_ms}
