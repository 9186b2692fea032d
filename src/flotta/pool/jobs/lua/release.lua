-- A worker hands jobs over: each is queued for the owner of its slot by the table, or parked if that one is not alive
-- or leaves (as the worker itself may). Notifications that it has not used go behind the doorbell of the new owner: those
-- that it names, then those in its inbox that it has not seen. So they stay in order, whatever was on its way.
-- KEYS[1] meta   ARGV: worker, the id of the last inbox entry that it has seen ('' it has seen all), then for each job:
-- key, fence, number of notifications, the ids of their inbox entries
-- Returns for each job 'O' | 'K' keep it: by the table it is yours | 'X' it was stopping and is gone | 'F' fenced | 'N'
-- gone.   Again: 'F' or 'N' for what was handed over, and nothing changes.
local worker, seen, answers = ARGV[1], ARGV[2], {}
local at, unseen = 3, nil

local function pass_notes(key, to, first, last)
  for i = first, last do
    local entry = redis.call('XRANGE', INBOX .. worker, ARGV[i], ARGV[i])[1]
    for j = 1, entry and #entry[2] or 0, 2 do
      if entry[2][j] == 'p' then
        pass_note(key, to, entry[2][j + 1])
      end
    end
    redis.call('XDEL', INBOX .. worker, ARGV[i])
  end
end

-- Notifications that the worker has not seen, by key: entries as {id, payload}.
local function read_unseen()
  unseen = {}
  for _, entry in ipairs(seen ~= '' and redis.call('XRANGE', INBOX .. worker, '(' .. seen, '+') or {}) do
    local note = {}
    for i = 1, #entry[2], 2 do
      note[entry[2][i]] = entry[2][i + 1]
    end
    if note.t == 'note' then
      unseen[note.k] = unseen[note.k] or {}
      table.insert(unseen[note.k], {entry[1], note.p})
    end
  end
end

local function pass_unseen(key, to)
  if not unseen then
    read_unseen()
  end
  for _, note in ipairs(unseen[key] or {}) do
    pass_note(key, to, note[2])
    redis.call('XDEL', INBOX .. worker, note[1])
  end
end

local function release(key, fence, first, last)
  local job, why = load_owned(worker, key, fence)
  if not job then
    return why
  elseif job.s == 'x' then
    drop_job(key, job, 'gone')
    return 'X'
  end
  local to = slot_owner(job.n)
  if to == worker then
    return 'K'
  end
  requeue_job(key, job, to)
  pass_notes(key, to, first, last)
  pass_unseen(key, to)
  return 'O'
end

while at < #ARGV do
  local notes = tonumber(ARGV[at + 2])
  answers[#answers + 1] = release(ARGV[at], ARGV[at + 1], at + 3, at + 2 + notes)
  at = at + 3 + notes
end
return answers
