-- Manifests, made from ids that are staged in temporary tables. Used by coordinator/manifest.py.

-- name: prepare
-- More memory than usual, for this transaction alone: it sorts and joins all ids of a collection.
SET LOCAL work_mem = '64MB';
CREATE TEMPORARY TABLE sync_source_ids (n bigint NOT NULL, id bytea NOT NULL) ON COMMIT DROP;
CREATE TEMPORARY TABLE sync_target_ids (n bigint NOT NULL, id bytea NOT NULL) ON COMMIT DROP;
CREATE TEMPORARY TABLE sync_settled_ids (id bytea NOT NULL) ON COMMIT DROP

-- name: copy_source_ids
COPY sync_source_ids (n, id) FROM STDIN (FORMAT BINARY)

-- name: copy_target_ids
COPY sync_target_ids (n, id) FROM STDIN (FORMAT BINARY)

-- name: analyze_staged
ANALYZE sync_source_ids, sync_target_ids

-- name: analyze_settled
ANALYZE sync_settled_ids

-- name: settle
-- What was found alike, but for what a later run has written since.
-- What is asked of a whole chunk comes first: the ids of the others are not even decompressed. After
-- a full copy nothing is alike, and what was written is not looked at.
WITH alike AS MATERIALIZED (
    SELECT i.id
      FROM sync_tasks t
      JOIN sync_manifests m USING (run_id, collection_id, chunk_start_offset)
      LEFT JOIN sync_unproven u ON u.task_id = t.id
     CROSS JOIN LATERAL unnest(m.ids) WITH ORDINALITY AS i(id, n)
     WHERE t.collection_id = %(collection_id)s AND t.run_id = ANY (%(known)s)
       AND t.task_status = 'completed'
       AND (u.task_id IS NULL
            OR cardinality(u.positions) < m.chunk_end_offset - m.chunk_start_offset)
       AND (u.task_id IS NULL OR i.n - 1 <> ALL (u.positions))
)
INSERT INTO sync_settled_ids (id)
SELECT id FROM alike
EXCEPT
SELECT i.id
  FROM sync_tasks t
  JOIN sync_manifests m USING (run_id, collection_id, chunk_start_offset)
  LEFT JOIN sync_unproven u ON u.task_id = t.id
 CROSS JOIN LATERAL unnest(m.ids) WITH ORDINALITY AS i(id, n)
 WHERE EXISTS (SELECT FROM alike)
   AND t.collection_id = %(collection_id)s AND t.run_id = ANY (%(written)s)
   AND (t.task_status <> 'completed' OR u.task_id IS NOT NULL)
   AND (t.task_status <> 'completed' OR i.n - 1 = ANY (u.positions))

-- name: freeze_source_ids
WITH settled AS (
    SELECT id FROM sync_settled_ids INTERSECT SELECT id FROM sync_target_ids
), numbered AS (
    SELECT s.id, row_number() OVER (ORDER BY s.n) - 1 AS n
      FROM sync_source_ids s
      LEFT JOIN settled USING (id)
     WHERE settled.id IS NULL
), chunks AS (
    INSERT INTO sync_manifests (run_id, collection_id, chunk_start_offset, chunk_end_offset, ids)
    SELECT %(run_id)s, %(collection_id)s, min(n), max(n) + 1, array_agg(id ORDER BY n)
      FROM numbered
     GROUP BY n / %(chunk_size)s
    RETURNING chunk_end_offset
)
SELECT max(chunk_end_offset) FROM chunks

-- name: freeze_extra_ids
-- What only the target has, behind what the source has.
WITH extra AS (
    SELECT id FROM sync_target_ids EXCEPT SELECT id FROM sync_source_ids
), numbered AS (
    SELECT id, row_number() OVER () - 1 AS n FROM extra
), chunks AS (
    INSERT INTO sync_manifests (run_id, collection_id, chunk_start_offset, chunk_end_offset, ids)
    SELECT %(run_id)s, %(collection_id)s, %(start)s + min(n), %(start)s + max(n) + 1,
           array_agg(id ORDER BY n)
      FROM numbered
     GROUP BY n / %(chunk_size)s
    RETURNING chunk_end_offset
)
SELECT max(chunk_end_offset) FROM chunks

-- name: freeze_unproven_ids
-- What a verification found, and all of a chunk that it failed on: first what the source has, then
-- what only the target has.
WITH unproven AS (
    -- Joined, since each m.ids[position] would decompress all ids of the chunk.
    SELECT t.chunk_start_offset + p.position AS place, i.id
      FROM sync_tasks t
      JOIN sync_manifests m USING (run_id, collection_id, chunk_start_offset)
      JOIN sync_unproven u ON u.task_id = t.id
     CROSS JOIN (unnest(m.ids) WITH ORDINALITY AS i(id, n)
                 JOIN unnest(u.positions, u.digests) AS p(position, digest)
                   ON p.position = i.n - 1)
     WHERE t.run_id = %(verification)s AND t.collection_id = %(collection_id)s
       AND t.task_status = 'completed' AND (p.digest = 0) = %(extra)s
    UNION ALL
    SELECT t.chunk_start_offset + i.n - 1, i.id
      FROM sync_tasks t
      JOIN sync_collections c USING (run_id, collection_id)
      JOIN sync_manifests m USING (run_id, collection_id, chunk_start_offset)
     CROSS JOIN LATERAL unnest(m.ids) WITH ORDINALITY AS i(id, n)
     WHERE t.run_id = %(verification)s AND t.collection_id = %(collection_id)s
       AND t.task_status <> 'completed'
       AND (t.chunk_start_offset >= c.first_extra) = %(extra)s
), numbered AS (
    SELECT id, row_number() OVER (ORDER BY place) - 1 AS n FROM unproven
), chunks AS (
    INSERT INTO sync_manifests (run_id, collection_id, chunk_start_offset, chunk_end_offset, ids)
    SELECT %(run_id)s, %(collection_id)s, %(start)s + min(n), %(start)s + max(n) + 1,
           array_agg(id ORDER BY n)
      FROM numbered
     GROUP BY n / %(chunk_size)s
    RETURNING chunk_end_offset
)
SELECT max(chunk_end_offset) FROM chunks

-- name: copy_manifest
-- Another run looks at the same ids, in the same chunks.
WITH collections AS (
    INSERT INTO sync_collections (run_id, collection_id, collection_name, target_name,
                                  source_definition, target_definition, source_count,
                                  target_count, first_extra, manifest_end)
    SELECT %(run_id)s, collection_id, collection_name, target_name, source_definition,
           target_definition, source_count, target_count, first_extra, manifest_end
      FROM sync_collections
     WHERE run_id = %(other)s
)
INSERT INTO sync_manifests (run_id, collection_id, chunk_start_offset, chunk_end_offset, ids)
SELECT %(run_id)s, collection_id, chunk_start_offset, chunk_end_offset, ids
  FROM sync_manifests
 WHERE run_id = %(other)s

-- name: source_end
SELECT first_extra FROM sync_collections
 WHERE run_id = %(run_id)s AND collection_id = %(collection_id)s

-- name: ids_at
-- The ids at some offsets of a manifest.
SELECT m.ids[o.n - m.chunk_start_offset + 1]
  FROM unnest(%(offsets)s::bigint[]) AS o(n)
 CROSS JOIN LATERAL (
    SELECT ids, chunk_start_offset
      FROM sync_manifests
     WHERE run_id = %(run_id)s AND collection_id = %(collection_id)s
       AND chunk_start_offset <= o.n AND chunk_end_offset > o.n
     ORDER BY chunk_start_offset DESC
     LIMIT 1) AS m

-- name: compared
-- Every record that a verification looked at, a chunk a row.
SELECT t.collection_name, m.ids, r.findings, t.error
  FROM sync_tasks t
  JOIN sync_manifests m USING (run_id, collection_id, chunk_start_offset)
  LEFT JOIN sync_results r ON r.task_id = t.id
 WHERE t.run_id = %(run_id)s
 ORDER BY t.collection_name, t.chunk_start_offset
