-- Makes a gateway known to the store, in two steps, so that what it sent while it was away is
-- written down before anybody counts on its share being unused.
--
-- KEYS  [1] members, [2] state (see take.lua)
-- ARGV  "hello", 1 if the store's clock was seen to jump
--         gives {id, now, born}: an id that nobody else has
--       "enter", id, the owner it was before or "", the seat that it had or -1, replicas, lease,
--         1 if it may take the seat of one that is missing, seats that were taken in the store before
--         gives {"id.seat", born, members...}
--       "leave", owner
--
-- The store came to be when it was empty, or runs as another process than the one that this was
-- written down for: after a restart or a failover its last writes may be lost, and whatever it says
-- is true only after one window.

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local members, state = KEYS[1], KEYS[2]
local step = ARGV[1]

if step == 'hello' then
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)')
  if redis.call('HGET', state, 'run') ~= run or ARGV[2] == '1' then
    redis.call('HSET', state, 'run', run, 'born', string.format('%.0f', now))
  end
  redis.call('PEXPIRE', state, 7200000)
  return {redis.call('HINCRBY', state, 'ids', 1), now, redis.call('HGET', state, 'born')}
end

if step == 'leave' then
  redis.call('ZREM', members, ARGV[2])
  return {'left'}
end

local id, before, wanted, replicas = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local lease, may_replace = tonumber(ARGV[6]), ARGV[7] == '1'
if before ~= '' then
  redis.call('ZREM', members, before)
end
-- Whoever was not heard of for an hour is gone.
redis.call('ZREMRANGEBYSCORE', members, '-inf', now - 3600000000)

local list = redis.call('ZRANGE', members, 0, -1, 'WITHSCORES')
local seated, placeholder, missing = {}, {}, nil
for m = 1, #list, 2 do
  local who, seat = string.match(list[m], '^(%d+)%.(%d+)$')
  seat = tonumber(seat)
  seated[seat] = list[m]
  if who == '0' then
    placeholder[seat] = list[m]
  elseif tonumber(list[m + 1]) <= now and not missing and seat < replicas then
    missing = seat
  end
end
-- The store forgot them, they have not come back yet.
for n = 8, #ARGV do
  local seat = tonumber(ARGV[n])
  if seat ~= wanted and not seated[seat] then
    local who = '0.' .. seat
    seated[seat], placeholder[seat] = who, who
    redis.call('ZADD', members, now - 1, who)
  end
end

local seat
if wanted >= 0 and wanted < replicas and (not seated[wanted] or placeholder[wanted]) then
  seat = wanted
end
for free = 0, replicas - 1 do
  if not seat and not seated[free] then
    seat = free
  end
end
if not seat and may_replace then
  for taken = 0, replicas - 1 do
    if not seat and placeholder[taken] then
      seat = taken
    end
  end
  seat = seat or missing
end
-- More gateways than `replicas`: no seat, the least share.
seat = seat or replicas
if seat < replicas and seated[seat] then
  redis.call('ZREM', members, seated[seat])
end
local owner = id .. '.' .. seat
redis.call('ZADD', members, now + lease, owner)
redis.call('PEXPIRE', members, 7200000)
return {owner, redis.call('HGET', state, 'born'), unpack(redis.call('ZRANGE', members, 0, -1))}
