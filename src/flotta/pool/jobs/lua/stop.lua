-- Ends a job. One that nobody has claimed is gone at once and its dispatcher hears `gone`; any other is marked as
-- stopping for good, and its owner is rung.
-- KEYS[1] meta   ARGV: key, node that waits for the end ('' none)
-- Returns 'G' (gone) | 'S' (stopping) | 'N' (not there).   Again: rings again, which is harmless; 'N' after 'G'.
local key, node = ARGV[1], ARGV[2]
local job = load_job(key)
if not job then
  return 'N'
elseif job.s == 'q' then
  drop_job(key, job, 'gone')
  return 'G'
end
local waiting = job.w or ''
if node ~= '' and not string.find(',' .. waiting .. ',', ',' .. node .. ',', 1, true) then
  waiting = waiting == '' and node or waiting .. ',' .. node
  redis.call('HSET', JOB .. key, 's', 'x', 'w', waiting)
elseif job.s ~= 'x' then
  redis.call('HSET', JOB .. key, 's', 'x')
end
ring(job.o, 't', 'stop', 'k', key, 'g', job.g)
return 'S'
