-- Stands before every script of people and presence. Owns: the names of the keys, the clock, and the two ways in which
-- a record changes: put and drop.
--
-- KEYS[1] is the zset "leases" (instance -> when its lease ends, ms of the server's clock). Every other key is made from
-- its prefix P and lies in the same slot, because all share the hash tag. (Which users an instance that died had is known
-- only inside the script.)
--   user:<user>     hash  socket id -> "<instance>\n<connection>\n<record>"; the record is JSON and opaque here
--   of:<instance>   hash  socket id -> user: what ends with the instance
--   users           zset  every user with a record, score 0: pages in the order of their names
--   meta            hash  epoch (who wrote first; another one: the data was lost), beat (when any instance last beat),
--                         silence (after how many ms without a beat of anybody it is Redis that let none through)
--   revoked:<user>  until when tokens were revoked, ms; it expires
-- and the channels "changes" and "control".
local P = string.sub(KEYS[1], 1, -7)
local LEASES, USERS, META = P .. 'leases', P .. 'users', P .. 'meta'
local USER, OF, REVOKED = P .. 'user:', P .. 'of:', P .. 'revoked:'

local clock_ms
local function now_ms()
  if not clock_ms then
    local time = redis.call('TIME')
    clock_ms = time[1] * 1000 + math.floor(time[2] / 1000)
  end
  return clock_ms
end

-- Whether nobody at all has beaten for a while: Redis was away, or has no memory left to write in.
local silent
local function is_silent()
  if silent == nil then
    local beat_ms, after_ms = redis.call('HGET', META, 'beat'), redis.call('HGET', META, 'silence')
    silent = beat_ms and after_ms and now_ms() - tonumber(beat_ms) > tonumber(after_ms)
  end
  return silent
end

-- Whether the lease of an instance is valid now. In a silence time says nothing of anybody (see beat.lua).
local live = {}
local function is_live(instance)
  if live[instance] == nil then
    local until_ms = redis.call('ZSCORE', LEASES, instance)
    live[instance] = until_ms and (tonumber(until_ms) > now_ms() or is_silent()) or false
  end
  return live[instance]
end

local function parts(value)
  return string.match(value, '^([^\n]*)\n([^\n]*)\n(.*)$')
end

-- count: sockets that the user has now.
local function tell(kind, user, sid, record, count)
  redis.call('PUBLISH', P .. 'changes', cmsgpack.pack({kind, user, sid, record, count}))
end

-- Writes a record. Whoever had the socket before (it has moved) has it no longer; but without take a live instance keeps
-- it: who hung may believe in a connection that has gone on elsewhere. quiet: the record was lost with the data, and nobody
-- was told that it has gone.
local function put(instance, connection, user, sid, record, quiet, take)
  local old = redis.call('HGET', USER .. user, sid)
  local owner, before, _
  if old then
    owner, _, before = parts(old)
  end
  if owner and owner ~= instance and not take and is_live(owner) then
    return
  end
  redis.call('HSET', USER .. user, sid, instance .. '\n' .. connection .. '\n' .. record)
  redis.call('HSET', OF .. instance, sid, user)
  if owner then
    if owner ~= instance then
      redis.call('HDEL', OF .. owner, sid)
      tell('move', user, sid, record, redis.call('HLEN', USER .. user))
    elseif before ~= record then
      tell('status', user, sid, record, redis.call('HLEN', USER .. user))
    end
  else
    redis.call('ZADD', USERS, 0, user)
    if not quiet then
      tell('join', user, sid, record, redis.call('HLEN', USER .. user))
    end
  end
end

-- Deletes a record if it is still this instance's. The socket may be another user's meanwhile.
local function drop(instance, user, sid)
  if redis.call('HGET', OF .. instance, sid) == user then
    redis.call('HDEL', OF .. instance, sid)
  end
  local old = redis.call('HGET', USER .. user, sid)
  if not old then
    return
  end
  local owner, _, record = parts(old)
  if owner == instance then
    redis.call('HDEL', USER .. user, sid)
    local count = redis.call('HLEN', USER .. user)
    if count == 0 then
      redis.call('ZREM', USERS, user)
    end
    tell('leave', user, sid, record, count)
  end
end

-- A record must never lie under an instance without a lease: nobody would ever reap it.
local function hold_lease(instance, lease_ms)
  redis.call('ZADD', LEASES, 'NX', now_ms() + lease_ms, instance)
end

