// Numbers and times, for people.

const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(Math.round(number));

export const plural = (number, one, many = `${one}s`) =>
  `${count(number)} ${Math.round(number) === 1 ? one : many}`;

/** A duration in its one or two largest units: 8 s, 4 min, 1 h 20 min, 3 d. */
export function duration(seconds) {
  if (seconds < 0.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  if (seconds < 59.5) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 && hours < 10 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.floor(hours / 24)} d`;
}

export function bytes(number) {
  if (number < 1e9) return `${count(number / 2 ** 20)} MB`;
  return `${(number / 2 ** 30).toFixed(1)} GB`;
}

export const rate = (number) => (number < 10 ? number.toFixed(1) : count(number));

export const percent = (share) => `${Math.floor(share * 100)} %`;

export const clock = (text) =>
  new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** Seconds from a moment of the server's to its present. */
export const since = (text, now) => Math.max(0, (now - Date.parse(text)) / 1000);
