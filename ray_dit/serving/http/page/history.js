// What the browser keeps: the newest batches of images, and a sample of each class. Without IndexedDB it keeps nothing.

const MOST = 30;
const STORES = ["batches", "samples"];

export async function keepBatch(batch) {
  await within("batches", "readwrite", (store) => store.add(batch));
  const keys = (await within("batches", "readonly", (store) => store.getAllKeys())) ?? [];
  for (const key of keys.slice(0, Math.max(keys.length - MOST, 0))) {
    await within("batches", "readwrite", (store) => store.delete(key));
  }
}

export async function keptBatches() {
  return (await within("batches", "readonly", (store) => store.getAll())) ?? [];
}

export function forgetBatches() {
  return within("batches", "readwrite", (store) => store.clear());
}

export function sampleOf(name) {
  return within("samples", "readonly", (store) => store.get(name));
}

export function keepSample(name, source) {
  return within("samples", "readwrite", (store) => store.put(source, name));
}

async function within(name, mode, act) {
  try {
    const database = await settled(opening());
    try {
      const transaction = database.transaction(name, mode);
      const result = await settled(act(transaction.objectStore(name)));
      if (mode === "readwrite") await completed(transaction);
      return result;
    } finally {
      database.close();
    }
  } catch {
    return undefined; // a private window, a full disk: the page works, and remembers nothing
  }
}

function opening() {
  const opened = indexedDB.open("ray-dit", 1);
  opened.onupgradeneeded = () => {
    for (const name of STORES) opened.result.createObjectStore(name, { autoIncrement: name === "batches" });
  };
  return opened;
}

function completed(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
}

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
