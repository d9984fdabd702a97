import org.apache.beam.runners.flink.FlinkJobServerDriver;

/**
 * Starts Beam's job server so that it ships no jars with a job.
 *
 * <p>It would send the 160 MB of its own class path with each job. The cluster has the same jars, so the class path is
 * hidden from the search for them. Run it with the JDK alone: {@code java -cp 'jars/*' JobServer.java}.
 */
public class JobServer {
  public static void main(String[] arguments) throws Exception {
    System.setProperty("java.class.path", "");
    FlinkJobServerDriver.main(arguments);
  }
}
