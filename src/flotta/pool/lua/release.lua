-- A worker hands jobs over: each is queued for the owner of its slot by the table, or parked if that one is not alive
-- or leaves (as the worker itself may). Notifications that it has not used go behind the doorbell of the new owner.
-- KEYS[1] meta   ARGV: worker, then for each job: key, fence, number of notifications, the ids of their inbox entries
-- Returns for each job 'O' | 'K' keep it: by the table it is yours | 'X' it was stopping and is gone | 'F' fenced | 'N'
-- gone.   Again: 'F' or 'N' for what was handed over, and nothing changes.
local worker, answers = ARGV[1], {}
local at = 2

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
  return 'O'
end

while at < #ARGV do
  local notes = tonumber(ARGV[at + 2])
  answers[#answers + 1] = release(ARGV[at], ARGV[at + 1], at + 3, at + 2 + notes)
  at = at + 3 + notes
end
return answers
