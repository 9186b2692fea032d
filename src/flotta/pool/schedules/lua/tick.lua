-- Takes the next tick of a ticker, if one is due.
-- ARGV: name, attempt, every_ms, hold_ms, clock_ms ('' = the server's time)
-- Record: "<next_ms>:<every_ms>:<at_ms>:<missed>:<until_ms>:<attempt>" in the hash "tickers": when the next is due, how
-- often, the time and taker of the last one, and until when its taker holds the ticker (0: not at all); or "stopped".
-- Returns {'TICK', at_ms, missed, now_ms, every_ms} | {'WAIT', for_ms, every_ms} | {'STOPPED'}.
-- Of the times that have passed only the newest is a tick, the others are missed. A record that is missing (the data was
-- lost) is made again. The same attempt again, after its answer was lost, gets the same tick while that is the newest.
local TICKERS = P .. 'tickers'
local name, attempt, every, hold = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now = ARGV[5] ~= '' and tonumber(ARGV[5]) or now_ms()

local function write(next_ms, every_ms, at_ms, missed, until_ms, by)
  redis.call('HSET', TICKERS, name, table.concat(
    {int(next_ms), int(every_ms), int(at_ms), int(missed), int(until_ms), by}, ':'))
end

local record = redis.call('HGET', TICKERS, name)
if record == 'stopped' then
  return {'STOPPED'}
end
local next_ms, every_ms, at, missed, until_ms, by =
  string.match(record or '', '^(%d+):(%d+):(%d+):(%d+):(%d+):(.*)$')
if not next_ms then
  write(now + every, every, 0, 0, 0, '')
  return {'WAIT', every, every}
end
next_ms, every_ms, at, missed, until_ms =
  tonumber(next_ms), tonumber(every_ms), tonumber(at), tonumber(missed), tonumber(until_ms)
if now < next_ms then
  if by == attempt then
    return {'TICK', at, missed, now, every_ms}
  end
  return {'WAIT', next_ms - now, every_ms}
end
local held_ms = until_ms - now_ms()
if held_ms > 0 then
  return {'WAIT', held_ms, every_ms}
end
missed = math.floor((now - next_ms) / every_ms)
at = next_ms + missed * every_ms
write(at + every_ms, every_ms, at, missed, hold > 0 and now_ms() + hold or 0, attempt)
return {'TICK', at, missed, now, every_ms}
