-- Makes a gateway known to the store, in two steps, so that what it sent while it was away is
-- written down before anybody counts on its share being unused.
--
-- KEYS  [1] members, [2] state (see take.lua)
-- ARGV  "hello", 1 if the store's clock was seen to jump
--         gives {id, now, born, era}: an id that nobody else has; born is the time
--         and a number; era is another after its clock was set
--       "enter", id, the ids that it may be known by, the seat that it had or -1, replicas, seats that
--         were taken in the store before
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
  local id = redis.call('HINCRBY', state, 'ids', 1)
  if redis.call('HGET', state, 'run') ~= run or ARGV[2] == '1' then
    -- What is lost may have had higher numbers: by the time of birth none is given twice.
    id = math.max(id, math.floor(now / 1000))
    redis.call('HSET', state, 'ids', string.format('%.0f', id))
    -- Two may find within a microsecond that the clock was set: the number tells their births apart.
    redis.call('HSET', state, 'run', run, 'born', string.format('%.0f.%.0f', now, id))
    -- Everybody comes back when he is not known to this birth. What he claims may be lost: until then
    -- all of his shares are kept.
    for _, member in ipairs(redis.call('ZRANGE', members, 0, -1)) do
      redis.call('ZADD', members, now - 1, member)
    end
  end
  if ARGV[2] == '1' then
    redis.call('HSET', state, 'era', string.format('%.0f', id))
  end
  redis.call('PEXPIRE', state, 7200000)
  return {id, now, redis.call('HGET', state, 'born'), redis.call('HGET', state, 'era') or '0'}
end

if step == 'leave' then
  redis.call('ZREM', members, ARGV[2])
  return {'left'}
end

local id, before, wanted, replicas = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
-- Whoever was not heard of for an hour is gone.
redis.call('ZREMRANGEBYSCORE', members, '-inf', now - 3600000000)

local list = redis.call('ZRANGE', members, 0, -1, 'WITHSCORES')
local seated, forgotten, away, silent, ghosts, without = {}, {}, {}, {}, {}, 1
local is_me = {}
for known in string.gmatch(before, '%d+') do
  is_me[known] = true
end
for m = 1, #list, 2 do
  local who, seat = string.match(list[m], '^(%d+)%.(%d+)$')
  seat = tonumber(seat)
  local is_missing = tonumber(list[m + 1]) <= now
  if is_me[who] then
    redis.call('ZREM', members, list[m])
  elseif seat < replicas then
    seated[seat] = list[m]
    forgotten[seat] = who == '0'
    if is_missing then
      away[#away + 1] = seat
      silent[seat] = now - list[m + 1]
    end
  elseif is_missing then
    ghosts[#ghosts + 1] = list[m]
  else
    without = without + 1
  end
end
-- The store forgot them, they have not come back yet.
for n = 6, #ARGV do
  local seat = tonumber(ARGV[n])
  if seat < replicas and seat ~= wanted and not seated[seat] then
    seated[seat], forgotten[seat] = '0.' .. seat, true
    away[#away + 1] = seat
    redis.call('ZADD', members, now - 1, seated[seat])
  end
end

local seat
if wanted >= 0 and wanted < replicas and (not seated[wanted] or forgotten[wanted]) then
  seat = wanted
end
for free = 0, replicas - 1 do
  if not seat and not seated[free] then
    seat = free
  end
end
-- There are no more gateways than seats. So if there are as many without one as there are seats of
-- which nothing is heard, those who had them are gone. If there are fewer, some are, but nobody knows
-- which: who took the seat of one who is only cut off would have his turns.
if not seat and #away > 0 and without >= #away then
  seat = math.min(unpack(away))
end
-- If nobody who has a seat was heard of for long, there would be no turns at all: the seat of whoever has
-- been silent for longest.
local LONG = 10000000
if not seat and #away == replicas then
  local least = math.huge
  for place = replicas - 1, 0, -1 do
    least = math.min(least, silent[place] or 0)
    if not seat or (silent[place] or 0) >= (silent[seat] or 0) then
      seat = place
    end
  end
  seat = least >= LONG and seat or nil
end
-- No seat, the least share.
seat = seat or replicas
if seat < replicas and seated[seat] then
  redis.call('ZREM', members, seated[seat])
end
local owner = id .. '.' .. seat
-- He counts as missing until he calls: if he does not hear that he is in, he goes on with the shares that
-- he had, and what he claimed under his number before is gone.
redis.call('ZADD', members, now, owner)
redis.call('PEXPIRE', members, 7200000)
-- One that comes and goes again and again leaves no more behind than others can be.
for g = 1, math.min(#ghosts, redis.call('ZCARD', members) - replicas) do
  redis.call('ZREM', members, ghosts[g])
end
return {owner, redis.call('HGET', state, 'born'), unpack(redis.call('ZRANGE', members, 0, -1))}
