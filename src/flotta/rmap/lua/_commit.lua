-- Stands before every script of this folder. Owns the order of a write: value, revision, kind, message, time to live.
-- KEYS[1] hash of the map. ARGV[1] its channel, ARGV[2] time to live in ms (0: none), ARGV[3] "1" if it slides.
-- The operation's own arguments begin at ARGV[4].
-- The channel is no key: on a Cluster a channel belongs to no slot, and the hash is all that the script touches.
local hash, channel = KEYS[1], ARGV[1]
local revision = false

-- Lua would write a revision above 1e14 as "1e+14".
local function raise_revision()
  revision = string.format("%.0f", redis.call("HINCRBY", hash, "=rev", 1))
end

local function commit_set(key, value)
  raise_revision()
  redis.call("HSET", hash, key, value, "=kind", "set")
  redis.call("PUBLISH", channel, "set:" .. struct.pack("<I4c0I4c0I4c0", #key, key, #value, value, #revision, revision))
end

local function commit_delete(key)
  redis.call("HDEL", hash, key)
  raise_revision()
  redis.call("HSET", hash, "=kind", "del")
  redis.call("PUBLISH", channel, "del:" .. struct.pack("<I4c0I4c0", #key, key, #revision, revision))
end

-- The revision outlives the content: a replica must never see it go back.
local function commit_reset(kind)
  raise_revision()
  redis.call("DEL", hash)
  redis.call("HSET", hash, "=rev", revision, "=kind", kind)
  redis.call("PUBLISH", channel, kind .. ":" .. revision)
end

-- After every operation, also one that changed nothing. Fixed: only where no time to live is set yet.
-- PTTL rather than PEXPIRE NX, which servers before 7.0 lack.
local function keep_alive()
  local ttl_ms = tonumber(ARGV[2])
  if ttl_ms > 0 and (ARGV[3] == "1" or redis.call("PTTL", hash) == -1) then
    redis.call("PEXPIRE", hash, ttl_ms)
  end
end

-- What an operation returns: the revision that it made or found and which of the two (1: made), so that the caller's copy
-- can catch up, then its own.
local function finish(...)
  keep_alive()
  return {revision or redis.call("HGET", hash, "=rev") or "0", revision and 1 or 0, ...}
end

-- A list value: a JSON array; anything else is items between commas.
local function read_items(value)
  if not value then
    return {}
  end
  local ok, items = pcall(cjson.decode, value)
  if ok and type(items) == "table" then
    return items
  end
  items = {}
  for item in string.gmatch(value, "[^,]+") do
    items[#items + 1] = item
  end
  return items
end
