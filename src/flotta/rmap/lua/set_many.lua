-- Set key ARGV[4] to ARGV[5], key ARGV[6] to ARGV[7] and so on: writes of one turn of a caller's loop, in their order.
-- Each has its own revision and message, as if they had come one by one.
-- Returns the revision of the last, then for each its previous value (false: none).
local count, keys = (#ARGV - 3) / 2, {}
for i = 1, count do
  keys[i] = ARGV[2 + 2 * i]
end
local stored, current = redis.call("HMGET", hash, unpack(keys)), {}
local last = redis.call("HINCRBY", hash, "=rev", count)
redis.call("HSET", hash, "=kind", "set", unpack(ARGV, 4))
local reply = {string.format("%.0f", last)}
for i = 1, count do
  local key, value = keys[i], ARGV[3 + 2 * i]
  local revision = string.format("%.0f", last - count + i)
  redis.call("PUBLISH", channel, "set:" .. struct.pack("<I4c0I4c0I4c0", #key, key, #value, value, #revision, revision))
  reply[i + 1] = current[key] or stored[i]
  current[key] = value
end
keep_alive()
return reply
